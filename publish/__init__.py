"""A data set made public: its data card, and the layouts of Hugging Face, just-zoom-in and VIGOR."""
