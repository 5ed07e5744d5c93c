"""What a recipe costs: estimated from shapes, and measured by real steps."""
