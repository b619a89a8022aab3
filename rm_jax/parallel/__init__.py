"""Devices, processes and how arrays are sharded over them: the mesh, its rules, several hosts."""
