"""Networks: encoders of token streams, the training loop, devices."""
