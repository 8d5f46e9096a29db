"""Process environment: compilation cache, huge pages, simulated devices, CPU cores, log levels."""
