"""What reading attention costs and gets right on a GPU: `python -m benchmarks.gpu.check`."""
