"""The environment of this process: compilation cache, huge pages, simulated devices, cores, quiet start."""
