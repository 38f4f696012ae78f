"""What watches the program, with real threads and clocks."""
