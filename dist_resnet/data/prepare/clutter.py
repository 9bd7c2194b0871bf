"""Files that operating systems and tools leave among images: never an image, a class or a split.

These are names that begin with a dot (`.DS_Store`, `._cat.jpg`, `.ipynb_checkpoints`, `.git`), and the names below,
which file browsers, network disks, archivers and editors use.
"""

_NAMES = frozenset(
    {
        "__macosx",
        "icon\r",
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        "thumbs.db",
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "@eadir",
        "@sharebin",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "lost+found",
        "__pycache__",
        "_success",
        "_temporary",
    }
)
_PREFIXES = {"._": "._*", ".nfs": ".nfs*", ".fuse_hidden": ".fuse_hidden*", ".trashed-": ".trashed-*", "~$": "~$*"}
_SUFFIXES = {":zone.identifier": "*:Zone.Identifier", "~": "*~"}


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is left out.

    >>> [is_clutter(name) for name in (".DS_Store", "Thumbs.db", "@eaDir", "cat.jpg", "n01440764")]
    [True, True, True, False, False]
    """
    lower = name.lower()
    return lower.startswith((".", "~$")) or lower in _NAMES or lower.endswith(tuple(_SUFFIXES))


def find_clutter(path: str) -> str | None:
    """The path up to its first name that is left out, or None if it has none.

    >>> find_clutter("cat/.ipynb_checkpoints/1-checkpoint.jpg")
    'cat/.ipynb_checkpoints'
    """
    names = path.split("/")
    for number, name in enumerate(names, 1):
        if name and is_clutter(name):
            return "/".join(names[:number])
    return None


def counted_as(path: str) -> str:
    """The name under which a left-out file is counted: its own, or a pattern for names that differ for each file.

    >>> counted_as("cat/._1.jpg")
    '._*'
    """
    name = path.rpartition("/")[2]
    for part, form in _PREFIXES.items():
        if name.lower().startswith(part):
            return form
    for part, form in _SUFFIXES.items():
        if name.lower().endswith(part):
            return form
    return name
