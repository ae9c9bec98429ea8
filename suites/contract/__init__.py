"""The contract as its users meet it: adapters, findings, pytest's options and decorators."""
