"""What drafters are made of, whatever they draft with."""
