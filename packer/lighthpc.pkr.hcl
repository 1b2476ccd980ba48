# The image of a node: Amazon Linux 2023, and only what scripts/provision adds.

locals {
  stamp         = formatdate("YYYYMMDD-hhmmss", timestamp())
  instance_type = var.instance_type != "" ? var.instance_type : (var.architecture == "arm64" ? "t4g.small" : "t3.small")
  is_emulated   = var.ec2_endpoint != ""

  tags = merge({
    Name                    = "${var.name_prefix}-${var.architecture}"
    "lighthpc:image"        = "node"
    "lighthpc:architecture" = var.architecture
    "lighthpc:bundle"       = basename(var.bundle)
  }, var.tags)

  settings = join("", [for name, value in var.settings : "${name}=${value}\n"])
}

source "amazon-ebs" "node" {
  ami_name        = "${var.name_prefix}-${var.architecture}-${local.stamp}"
  ami_description = "A node of lighthpc: runs its task, then terminates its instance."
  region          = var.region
  ami_regions     = var.copy_to_regions
  ami_users       = var.share_with_accounts
  instance_type   = local.instance_type
  subnet_id       = var.subnet_id

  iam_instance_profile        = var.instance_profile
  associate_public_ip_address = var.ssh_interface == "public_ip" ? true : null
  ssh_interface               = var.ssh_interface
  ssh_username                = "ec2-user"

  custom_endpoint_ec2        = var.ec2_endpoint
  skip_region_validation     = local.is_emulated
  skip_metadata_api_check    = local.is_emulated
  skip_credential_validation = local.is_emulated

  # Amazon's newest Amazon Linux 2023. The minimal image is not used: it has no AWS CLI and no SSM agent.
  source_ami_filter {
    owners      = ["amazon"]
    most_recent = true
    filters = {
      name                = "al2023-ami-2023.*-kernel-*-${var.architecture}"
      architecture        = var.architecture
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }

  encrypt_boot = true
  kms_key_id   = var.kms_key_id

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = var.volume_gib
    iops                  = 3000 # included in the price of gp3, like the throughput (MiB/s)
    throughput            = 125
    encrypted             = true
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
  }

  # newer than 1.6: the metadata service of every instance of this image, and of the build instance, requires a token.
  imds_support = "v2.0"
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  # :newer than 1.6

  # A power-off also terminates a forgotten build instance.
  shutdown_behavior = "terminate"

  tags            = local.tags
  snapshot_tags   = local.tags
  run_tags        = merge(local.tags, { Name = "bakes ${var.name_prefix}-${var.architecture}" })
  run_volume_tags = local.tags
}

build {
  sources = ["source.amazon-ebs.node"]

  provisioner "file" {
    sources     = [var.bundle, "${var.bundle}.sha256"]
    destination = "/tmp/"
  }

  provisioner "shell" {
    inline = ["mkdir -p /tmp/workload"]
  }

  provisioner "file" {
    source      = "${var.workload}/"
    destination = "/tmp/workload"
  }

  provisioner "shell" {
    inline_shebang = "/bin/bash -eu"
    inline = [
      "cd /tmp",
      "sha256sum --check ${basename(var.bundle)}.sha256",
      "tar -xzf ${basename(var.bundle)}",
      "printf '%s' '${base64encode(local.settings)}' | base64 -d >/tmp/lighthpc.env",
      "sudo /tmp/lighthpc/provision --image --workload /tmp/workload --env /tmp/lighthpc.env",
      "rm -rf /tmp/lighthpc /tmp/workload /tmp/lighthpc.env /tmp/${basename(var.bundle)}*",
    ]
  }

  post-processor "manifest" {
    output     = var.manifest
    strip_path = true
    custom_data = {
      architecture = var.architecture
      bundle       = basename(var.bundle)
    }
  }
}
