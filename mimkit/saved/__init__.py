"""What a run hands over, each in a weights file and a JSON file: its encoder, and the tokenizer that reads images."""
