"""The configuration of a run: recipes, the teacher's input, identities, the recipe for training a teacher."""
