"""What Kubernetes is told: options, manifests, and the first process of a pod."""
