"""The paper's tables, from the released files, with our own runs in the same rows."""
