"""Weight gradients from less memory: sketches and samples of what a layer keeps, and projections of its gradient."""
