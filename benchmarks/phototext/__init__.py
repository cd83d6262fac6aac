"""PhotoText: photographs with their texts, from public git repositories."""
