"""From text to arrays: tokenised with marks, cached, packed into a few shapes, in an order."""
