"""Golden files against this build: each module returns the largest error that it finds."""
