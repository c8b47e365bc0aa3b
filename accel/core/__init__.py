"""The two seams and the clock: what a method is, how a recipe of them runs a pipeline, where in a trajectory it is."""
