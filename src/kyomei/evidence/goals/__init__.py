"""Goals: what certified features tell of whole documents, and detectors that apply it to new text."""
