"""What joins streamll to servers and frameworks. None of it imports one: whoever runs a program in one has it."""
