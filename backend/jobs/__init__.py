"""Jobs: the queue, the functions that workers run, the workers."""
