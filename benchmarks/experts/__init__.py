"""The experts: training, scores and demonstrations (`python -m benchmarks.experts --help`)."""
