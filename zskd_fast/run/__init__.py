"""A whole job, from a teacher to a student, in one folder."""
