"""Experiments: config -> stage -> training run, and run -> the trained model that a verb needs.

Only this room joins the others. An experiment is a frozen dataclass (`configs`); `training` makes
its stage (`stages`) and runs the loop; `runs` loads trained models.
"""
