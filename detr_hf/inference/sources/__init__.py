"""Where pictures come from when there are many: files, archives, tables, videos, and data sets of `datasets`."""
