"""What people see of a benchmark: tables, figures and one HTML page, all computed from a run's record alone."""
