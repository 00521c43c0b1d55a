"""What Linux keeps in memory: a module a kernel subject, each reading through a `Kernel`."""
