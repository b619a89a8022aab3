"""Networks: a decoder, an encoder, their attention and layers, heads and adapters."""
