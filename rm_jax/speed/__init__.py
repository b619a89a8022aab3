"""Speed: operations of a step counted, speed measured, and plans for other devices compiled."""
