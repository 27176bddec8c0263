"""What a run is told: recipes, the teacher's input, identities, and the recipe for training a teacher. Free of torch."""
