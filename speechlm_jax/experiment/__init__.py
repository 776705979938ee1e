"""Experiments: config -> stage -> training run, and run -> the trained thing that a verb needs.

The one room that joins the others. An experiment is a frozen dataclass (`configs`); `training`
makes its stage (`stages`) and runs the loop; `runs` reads back what was trained.
"""
