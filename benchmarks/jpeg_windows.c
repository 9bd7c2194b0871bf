/* Bare libjpeg-turbo decoding of windows: the limit that loaders are measured against.
 *
 * Only the columns and rows of the window are put out (jpeg_crop_scanline, jpeg_skip_scanlines) and no row below it is
 * looked at. Nothing is resized, normalized or kept. Built by loader.py:
 * cc -O3 -shared -fPIC jpeg_windows.c -ljpeg -lpthread
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

typedef struct {
  const unsigned char **images;
  const unsigned long *sizes;
  const int *windows; /* top, left, height, width of each image */
  int count;
  atomic_int next, failed;
} Work;

typedef struct {
  struct jpeg_error_mgr manager;
  jmp_buf escape;
} Errors;

static void leave(j_common_ptr info) { longjmp(((Errors *)info->err)->escape, 1); }

static void keep_quiet(j_common_ptr info) { (void)info; }

/* Returns 0, or 1 where the image cannot be decoded. `rows` grows as needed. */
static int decode(const unsigned char *image, unsigned long size, const int *window, unsigned char **rows,
                  size_t *room) {
  struct jpeg_decompress_struct info;
  Errors errors;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = leave;
  errors.manager.output_message = keep_quiet;
  jpeg_create_decompress(&info);
  if (setjmp(errors.escape)) {
    jpeg_destroy_decompress(&info);
    return 1;
  }
  jpeg_mem_src(&info, image, size);
  jpeg_read_header(&info, TRUE);
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  JDIMENSION left = window[1], width = window[3];
  jpeg_crop_scanline(&info, &left, &width); /* widened to whole blocks */
  size_t stride = 3 * (size_t)width, needed = stride * window[2];
  if (needed > *room) {
    free(*rows);
    *rows = malloc(*room = needed);
  }
  jpeg_skip_scanlines(&info, window[0]);
  for (int row = 0; row < window[2];) {
    JSAMPROW target = *rows + stride * row;
    row += jpeg_read_scanlines(&info, &target, 1);
  }
  jpeg_destroy_decompress(&info);
  return 0;
}

static void *decode_some(void *argument) {
  Work *work = argument;
  unsigned char *rows = NULL;
  size_t room = 0;
  for (int place; (place = atomic_fetch_add(&work->next, 1)) < work->count;)
    if (decode(work->images[place], work->sizes[place], work->windows + 4 * place, &rows, &room))
      atomic_fetch_add(&work->failed, 1);
  free(rows);
  return NULL;
}

/* Decodes `count` windows with `num_threads` threads; returns how many images could not be decoded. */
int decode_windows(const unsigned char **images, const unsigned long *sizes, const int *windows, int count,
                   int num_threads) {
  Work work = {.images = images, .sizes = sizes, .windows = windows, .count = count};
  pthread_t threads[num_threads];
  for (int number = 0; number < num_threads; number++)
    pthread_create(&threads[number], NULL, decode_some, &work);
  for (int number = 0; number < num_threads; number++)
    pthread_join(threads[number], NULL);
  return work.failed;
}
