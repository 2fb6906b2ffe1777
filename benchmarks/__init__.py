"""What neurofuse costs and how well it performs; a module per question, run by `python -m benchmarks.NAME`."""
