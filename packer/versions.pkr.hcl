packer {
  required_version = ">= 1.11.0"

  required_plugins {
    amazon = {
      source = "github.com/hashicorp/amazon"
      # Pinned: a plugin runs with the rights of the user who bakes.
      version = "= 1.8.0"
    }
  }
}
