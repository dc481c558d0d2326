"""What to cite, on the cards of models."""

#: Entries of BibTeX: of the zoom, and of retrievers by their training method.
CITATIONS = {
    "zoom": """\
@article{erzurumlu2026justzoomin,
  title  = {Just Zoom In: Cross-View Geo-Localization via Autoregressive Zooming},
  author = {Erzurumlu, Yunus Talha and Kwag, Jiyong and Yilmaz, Alper},
  year   = {2026},
  eprint = {2603.25686},
  archivePrefix = {arXiv}
}""",
    "statewide": """\
@inproceedings{fervers2024statewide,
  title     = {Statewide Visual Geolocalization in the Wild},
  author    = {Fervers, Florian and Bullinger, Sebastian and Bodensteiner, Christoph and Arens, Michael and
               Stiefelhagen, Rainer},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024}
}""",
    "sample4geo": """\
@inproceedings{deuser2023sample4geo,
  title     = {Sample4Geo: Hard Negative Sampling For Cross-View Geo-Localisation},
  author    = {Deuser, Fabian and Habel, Konrad and Oswald, Norbert},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}""",
    "transgeo": """\
@inproceedings{zhu2022transgeo,
  title     = {TransGeo: Transformer Is All You Need for Cross-view Image Geo-localization},
  author    = {Zhu, Sijie and Shah, Mubarak and Chen, Chen},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}""",
}
