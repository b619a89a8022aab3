"""Training. `objective` says what is minimised, `step` how; read these first."""
