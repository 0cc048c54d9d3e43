"""How text becomes batches."""
