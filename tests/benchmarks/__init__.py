"""Scripts that measure. Run by hand, on a machine that is otherwise idle; no test asserts a time."""
