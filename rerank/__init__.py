"""Candidates compared by a vision-language model: which of them shows the place of a photo?"""
