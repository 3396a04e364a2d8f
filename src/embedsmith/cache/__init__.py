"""The semantic cache: questions that one answer serves get that answer, and no others do."""
