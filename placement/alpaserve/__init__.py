"""AlpaServe's synthetic experiments: its models' service times, arrivals, placements, formulas.

Source: AlpaServe (Li et al., OSDI 2023), sections 6.2 to 6.5, and the placements with their
attainment published in its artifact, alpa-projects/mms.
"""
