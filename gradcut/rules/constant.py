"""Operators whose derivative is zero almost everywhere, or that draw at random from a shape alone."""

from __future__ import annotations

from gradcut.rules.registry import zero

zero("Floor Ceil Round Sign Hardmax")
zero("ConstantOfShape EyeLike RandomNormalLike RandomUniformLike RandomNormal RandomUniform Bernoulli Multinomial")
zero("MelWeightMatrix")  # the edges are rounded to numbers of bins
zero("Shape Size NonZero ArgMax ArgMin IsNaN IsInf Constant")
