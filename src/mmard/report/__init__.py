"""What was measured, as tables and as a page: everything here reads records and computes no figure anew."""
