"""Other libraries: `langchain` and `llamaindex`; each loads its library, which is an extra of the same name."""
