"""What the four tools share. They run any package that keeps PaddleRec's interface and know no model."""
