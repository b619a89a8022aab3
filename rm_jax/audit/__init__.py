"""The audit of a reward model: what it learned, on one page, before anyone optimises against it.

run           measures all sections: examples and a model's scores -> a report
section       what a section is, and what it is given
sections/     one module a section: measure, draw, render, registered in one list
page          report -> report.json, report.html, pictures
writer, plots what sections write and draw with
benchmarks/   published benchmarks: their files and their metrics
scorer        scores each response once and keeps the scores
comparisons, reference, figures, edits, topics: what sections measure with
"""
