"""Data that a teacher makes: one loop, and a small declaration of each way."""
