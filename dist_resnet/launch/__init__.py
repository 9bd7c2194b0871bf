"""Starting a run: in this process, or on Ray Train workers."""
