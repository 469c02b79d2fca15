"""Mixture of experts: gate and grouped expert MLPs."""
