"""What neurofuse costs, as ratios within one run."""
