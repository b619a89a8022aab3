"""Long studies that print a table; pytest collects none of them."""
