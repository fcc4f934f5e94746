"""Networks from elsewhere and to elsewhere, on request alone: a known teacher's file, a run on the Hugging Face hub."""
